"""What the tests of judging and of the demo's commands do in a process of their own (see commands.py)."""

from pathlib import Path

import commands
from drills import config, damage, message


def failing(*, kind: str) -> None:
    """A command that raises an error of that class, while a reader thread is busy."""
    import builtins
    import threading
    import time

    from mtjudge_jax import errors
    from mtjudge_jax.cli import run_command

    def command() -> None:
        raise (vars(builtins) | vars(errors))[kind]("first line\nsecond line")

    threading.Thread(target=time.sleep, args=(60,)).start()
    run_command(command)


def judging(*, folder: str) -> dict:
    """The same pictures in several forms, alone and together, and questions that cannot be asked."""
    from PIL import Image

    from mtjudge_jax.judge.judge import Judge
    from mtjudge_jax.policy.model import DEMO_BASE

    folder = Path(folder)
    judge = Judge.from_pretrained(DEMO_BASE, batch=1)

    def ask(images, task="technical", instruction="") -> dict:
        return judge.judge(images=images, task=task, instruction=instruction)._asdict()

    facts = {"forms": {}, "errors": {}}
    for name in ("a.png", "turned.png", "cmyk.jpg", "palette.png"):
        path = folder / name
        facts["forms"][name] = [ask(path), ask(path.read_bytes()), ask([Image.open(path)])]
    facts["shapes"] = {name: ask(str(folder / f"{name}.png")) for name in ("wide", "tall", "small", "large")}
    names = ("a.png", "b.png", "wide.png")
    facts["alone"] = [ask(folder / name, "alignment", "a dog") for name in names]
    questions = [([folder / name], "a dog") for name in names]
    pairs = Judge.from_pretrained(DEMO_BASE, batch=2)
    facts["together"] = [verdict._asdict() for verdict in pairs.judge_all(questions, task="alignment")]
    facts["none"] = judge.judge_all([], task="technical")
    a = folder / "a.png"
    for case, arguments in {
        "two images": ([a, a],),
        "one image": (a, "pairwise_technical"),
        "instruction": (a, "alignment"),
        "url": ("http://a.b/c.png",),
        "no file": (folder / "none.png",),
        "unreadable": (a.read_bytes()[:-500],),
        "16 bits": (Image.new("I;16", (64, 64), 40000),),
        "task": (a, "technicall"),
    }.items():
        facts["errors"][case] = message(ask, *arguments)
    facts["errors"]["folder"] = message(Judge.from_pretrained, folder)
    return facts


def asked_thing(number: int) -> str:
    """The text of question `number`. The base's greedy answers about photographs are all alike but for those about a text."""
    return ("a dog", "a cat", "an apple")[number % 3]


def scoring() -> dict:
    """What the judge in process says of photographs, by every way of asking; and what it compiled after its warm-up."""
    import jax

    from mtjudge_jax.judge.judge import Judge
    from mtjudge_jax.policy.model import DEMO_BASE

    photos = commands.photos()
    judge = Judge.from_pretrained(DEMO_BASE, batch=4)
    judge.warm_up(tasks=("technical", "alignment", "pairwise_technical"))
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda name, *_, **__: compiled.append(name) if "backend_compile" in name else None
    )
    texts = [asked_thing(i) for i in range(len(photos))]
    found = judge.compare(photos[:4], task="pairwise_technical")
    facts = {
        "technical": judge.score(photos, task="technical").tolist(),
        "alignment": judge.score(photos, task="alignment", instructions=texts).tolist(),
        "win_rate": found.win_rate.tolist(),
        "matrix": found.matrix.tolist(),
        "verdict": judge.judge(images=photos[0], task="technical")._asdict(),
        "one by one": [judge.score([photos[i]], task="alignment", instructions=[texts[i]]).tolist()[0] for i in range(5)],
    }
    pairs = [(photos[i], photos[j]) for i, j in ((0, 1), (2, 3))]
    facts["swapped"] = judge.compare(photos[3::-1], task="pairwise_technical").win_rate.tolist()
    facts["pairs"] = [one._asdict() for one in judge.judge_all(pairs, task="pairwise_technical", both_orders=True)]
    mixed = [*photos[:3], {"image": photos[3], "task": "alignment", "instruction": "a dog"}, photos[4], (photos[5],)] * 9
    verdicts = judge.judge_all(mixed, task="technical")
    facts["mixed"] = [one.score_expected for one in verdicts]
    facts["compiled"] = len(compiled)
    facts["votes"] = judge.judge(images=photos[0], task="technical", samples=5, seed=1)._asdict()
    facts["seeds"] = [judge.score(photos[:3], task="technical", samples=4, seed=seed).tolist() for seed in (1, 1, 2)]
    facts["alone"] = [judge.score([one], task="technical", samples=4, seed=1).tolist()[0] for one in photos[:3]]
    return facts


def damaged_test_split(*, folder: str) -> None:
    """Demo data with two damaged records among the test records of a task."""
    commands.write_data(folder=folder)
    damage(Path(folder), "test", "technical")


def demo(*, workdir: str) -> None:
    """`mtjudge demo` with the sizes of commands.py."""
    import functools
    import sys

    from mtjudge_jax import cli
    from mtjudge_jax.demo import run

    run.write_demo_data = functools.partial(run.write_demo_data, train=12, val=4, test=4, unseen=4)
    run.get_config = lambda: config(steps=3)
    sys.argv = ["mtjudge", "demo", f"--workdir={workdir}"]
    cli.main()


def arms(*, workdir: str, names: str) -> None:
    """`mtjudge demo --arms=NAMES --seeds=1` with the sizes of commands.py, one step a task."""
    import functools
    import sys

    import mtjudge_jax.demo.arms as module
    from mtjudge_jax import cli

    module.write_demo_data = functools.partial(module.write_demo_data, train=12, val=4, test=4, unseen=4)
    module.get_config, module._STEPS, module._PROMPTS, module._EVAL_BATCH = config, 1, config().rollout.prompts, 12
    sys.argv = ["mtjudge", "demo", f"--arms={names}", "--seeds=1", f"--workdir={workdir}"]
    cli.main()
