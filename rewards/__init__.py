"""What pictures are worth: rewards of images and prompts, how different images are, and curves of both."""
