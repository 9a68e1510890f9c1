"""What the layers of a decoder compute here: attention over a forest, fused layers, the head without logits."""
