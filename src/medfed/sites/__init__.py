"""Hospitals and a federation's server: folders, keys, certificates, policy, audit log, and messages between the two."""

import os

# Flower reads both when it is imported, which only this package does: nothing is reported and no update looked for.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"
