"""What a hospital and a federation's server keep in folders: policy, audit log, keys, certificates, settings."""
