"""VBench as a protocol: its prompts, names and totals, and when two numbers can be compared.

Source: VBench, arXiv:2311.17982, github.com/Vchitect/VBench (Apache-2.0).
"""
