"""Where things are in the repository."""

from pathlib import Path

SUPPORT = Path(__file__).parent
ROOT = SUPPORT.parents[1]
PACKAGE, CONFIGS, LAUNCH = ROOT / "mtjudge_jax", ROOT / "configs", ROOT / "launch"
GOLDENS = SUPPORT / "goldens"
