//! Names that clients choose: paths become routes of bounded length and number, SPIFFE identities and server names read
//! back as what they were.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_api::SpiffeId;
use mesh_proxy::limits;
use mesh_proxy::learned::{Learned, collapse};
use mesh_proxy::tls::port_in_server_name;

fuzz_target!(|text: &str| {
    let routes = Learned::default();
    for path in text.split('\n') {
        let mut route = String::new();
        collapse(path, &mut route);
        assert!(!route.is_empty() && route.len() <= limits::MAX_ROUTE_BYTES, "{route}");
        assert_eq!(*routes.name(path, false), *route);
        assert!(routes.name(path, true).len() <= limits::MAX_ROUTE_BYTES);
        port_in_server_name(path);
        if let Ok(identity) = path.parse::<SpiffeId>() {
            assert_eq!(identity.to_string().parse::<SpiffeId>().expect("an identity reads back"), identity);
            assert_eq!(port_in_server_name(&identity.server_name(Some(8080))), Some(8080));
        }
    }
});
