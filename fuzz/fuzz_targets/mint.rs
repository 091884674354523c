//! The fuzz target `mint`.

#![cfg_attr(fuzzing, no_main)]

tollgate_fuzz::target!(tollgate_fuzz::mint::check);
