"""The demo world: a puppet theatre in which an animal at a table does an action of ordered phases with an object."""
