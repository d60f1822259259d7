//! Screens of a recording, made as the README makes them.
