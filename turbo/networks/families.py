"""The families of networks: what a folder of weights holds, by the class in its config.json."""

from turbo.networks.unet import VideoUNet

Network = VideoUNet
