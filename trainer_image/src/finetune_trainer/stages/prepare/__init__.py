"""PREPARE: fetch, prove, report and quantize on a CPU."""
