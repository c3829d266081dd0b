"""What the end-to-end tests share: a cluster, gateways, traffic."""
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
