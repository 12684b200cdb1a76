"""What the machine can hold, and which precision it is fast in.

Take `estimate.MemoryMeter` for what a training needs and took, `precision.prefers_bf16`, `memory.peak_memory_bytes`. Uses
common/.
"""
