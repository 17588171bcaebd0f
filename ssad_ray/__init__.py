"""Self-supervised automatic annotation and anomaly detection for industrial visual inspection, distributed on Ray."""

__version__ = "0.1.0"
