"""The mathematics: noise schedule, samplers, guidance, distillation."""
