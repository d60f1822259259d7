//! The program `mesh-control`.

fn main() -> std::process::ExitCode {
    mesh_control::main(std::env::args_os())
}
