"""Where data comes from: bundled sets, folders of images, arrays."""
