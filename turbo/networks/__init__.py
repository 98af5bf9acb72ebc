"""The networks: video UNet, LoRA, text encoder, VAE."""
