"""The running process: controller loop, metrics, HTTP probes, logs."""
