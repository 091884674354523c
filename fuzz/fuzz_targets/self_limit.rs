//! The fuzz target `self_limit`.

#![cfg_attr(fuzzing, no_main)]

tollgate_fuzz::target!(tollgate_fuzz::self_limit::check);
