//! `weft`, the CNI plugin.

#![no_main]

#[global_allocator]
static ARENA: weft_plugin::arena::Arena = weft_plugin::arena::Arena::new();

/// The C entry point. Rust's own would hide closed standard descriptors behind /dev/null, and an ADD whose
/// answer is lost must fail and be undone.
#[expect(unsafe_code, reason = "an entry point of its own needs a fixed symbol")]
#[unsafe(no_mangle)]
extern "C" fn main(argc: i32, argv: *const *const libc::c_char) -> i32 {
    // SAFETY: the C runtime passes the process' arguments, and no thread runs yet.
    unsafe { weft_plugin::serve(argc, argv) }
}
