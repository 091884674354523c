//! The fuzz target `jwt`.

#![cfg_attr(fuzzing, no_main)]

tollgate_fuzz::target!(tollgate_fuzz::jwt::check);
