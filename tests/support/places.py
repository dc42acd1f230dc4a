"""Where things are in the repository, and the ids of tokens of the demo's base that tests name."""

import json
from pathlib import Path

SUPPORT = Path(__file__).parent
ROOT = SUPPORT.parents[1]
PACKAGE, CONFIGS, LAUNCH = ROOT / "mtjudge_jax", ROOT / "configs", ROOT / "launch"
GOLDENS = SUPPORT / "goldens"
_BASE = json.loads((PACKAGE / "demo" / "base" / "config.json").read_text())["text_config"]
TURN_END, TEXT_END = _BASE["eos_token_id"], _BASE["pad_token_id"]
