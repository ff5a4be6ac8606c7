//! Texts per manager, held against the files that packagers take.
