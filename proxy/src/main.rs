//! The program `mesh-proxy`.

fn main() -> std::process::ExitCode {
    mesh_proxy::main(std::env::args_os())
}
