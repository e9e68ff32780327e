"""The demo world: an animal at a table does an action of ordered phases with an object."""
