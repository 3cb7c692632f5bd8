"""A student as a pipeline of diffusers: its scheduler, its network, the call that samples it."""
