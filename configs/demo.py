"""The demo: a tiny judge on a laptop, six tasks, about three minutes on two CPU cores where nothing else runs.

    mtjudge prepare --dataset=demo --out=runs/data
    mtjudge train --config=configs/demo.py --config.data.path=runs/data --workdir=runs/demo

`mtjudge demo --workdir=runs/demo` does the same with the evaluations and the report around it. What to expect: README.
"""

from mtjudge_jax.demo.config import get_config

__all__ = ["get_config"]
