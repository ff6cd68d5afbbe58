"""What a training step costs above its limit, beside other implementations."""
