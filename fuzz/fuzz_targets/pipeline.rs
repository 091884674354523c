//! The fuzz target `pipeline`.

#![cfg_attr(fuzzing, no_main)]

tollgate_fuzz::target!(tollgate_fuzz::pipeline::check);
