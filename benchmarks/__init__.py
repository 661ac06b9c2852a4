"""What the layer costs, measured side by side with the drivers and with other tools: `python -m benchmarks`.

Ratios of contenders in one run are what counts; rows per second belong to the machine.
"""
