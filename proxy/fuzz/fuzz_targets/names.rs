//! Names that clients choose: paths become routes of bounded length and number, SPIFFE identities and server names read
//! back as what they were.

#![no_main]

use libfuzzer_sys::fuzz_target;
use mesh_api::SpiffeId;
use mesh_proxy::learned::{Learned, OTHER, collapse};
use mesh_proxy::limits;
use mesh_proxy::tls::port_in_server_name;
use std::collections::HashSet;

fuzz_target!(|text: &str| {
    let (routes, calls) = (Learned::default(), Learned::default());
    let mut known = HashSet::new();
    for path in text.split('\n') {
        let mut route = String::new();
        collapse(path, &mut route);
        assert!(!route.is_empty() && route.len() <= limits::MAX_ROUTE_BYTES, "{route}");
        let name = routes.name(path, false);
        if known.len() < limits::MAX_ROUTES {
            known.insert(route.clone());
            assert_eq!(*name, *route);
        } else {
            // Past the cap whatever is new has no name of its own.
            assert_eq!(*name, *if known.contains(&route) { route.as_str() } else { OTHER });
        }
        assert!(calls.name(path, true).len() <= limits::MAX_ROUTE_BYTES);
        port_in_server_name(path);
        if let Ok(identity) = path.parse::<SpiffeId>() {
            assert_eq!(identity.to_string().parse::<SpiffeId>().expect("an identity reads back"), identity);
            assert_eq!(port_in_server_name(&identity.server_name(Some(8080))), Some(8080));
        }
    }
});
