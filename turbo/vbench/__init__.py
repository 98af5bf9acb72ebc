"""VBench as a protocol: its prompts, names and totals, and what makes two numbers comparable.

Source: VBench, arXiv:2311.17982, github.com/Vchitect/VBench (Apache-2.0).
"""
