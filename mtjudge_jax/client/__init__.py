"""A judge over the network, for programs without JAX: `Client` of `mtjudge serve`, `OpenAIClient` of any OpenAI-like server.

Needs httpx alone: `pip install --no-deps mtjudge_jax; pip install httpx`.
"""

from mtjudge_jax.client.openai import OpenAIClient
from mtjudge_jax.client.requests import ServerError
from mtjudge_jax.client.served import Client
from mtjudge_jax.tasks.comparison import WinRates
from mtjudge_jax.tasks.verdicts import Verdict

__all__ = ["Client", "OpenAIClient", "ServerError", "Verdict", "WinRates"]
