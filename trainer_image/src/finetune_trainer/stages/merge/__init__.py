"""MERGE: dequantize, add the adapter, verify and publish on a CPU."""
