//! Has the program built again when a migration is added: the folder is read by a macro, which cargo does not see.

fn main() {
    println!("cargo:rerun-if-changed=migrations");
}
