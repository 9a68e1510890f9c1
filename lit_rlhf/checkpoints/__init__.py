"""Checkpoints that verify themselves: one file each, safetensors, no pickle, written whole or not at all."""
