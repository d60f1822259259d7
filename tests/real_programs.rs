//! Programs that nobody here wrote as meshed pods: nginx, Redis and PostgreSQL, called through their cluster IPs.

use crate::harness::{Need, SHOP, Sandbox, eventually, find_program, test};
use anyhow::{Context, Result, ensure};
use libtest_mimic::Trial;
use serde_json::{Value, json};
use std::time::Duration;

pub(crate) fn tests() -> Vec<Trial> {
    let needs = |server: &'static str, client: &'static str| {
        vec![Need::Namespaces, Need::Program("kubectl"), Need::Program(server), Need::Program(client)]
    };
    vec![
        test("real_programs::nginx_answers_curl", &needs("nginx", "curl"), nginx_answers_curl),
        test("real_programs::redis_answers_redis_cli", &needs("redis-server", "redis-cli"), redis_answers_redis_cli),
        test("real_programs::postgres_answers_psql", &needs("postgres", "psql"), postgres_answers_psql),
    ]
}

/// A meshed Deployment of one pod behind a Service on the same port, and a meshed pod to call it from.
fn deploy(s: &Sandbox, name: &str, port: u16, spec: Value, volumes: &[Value]) -> Result<()> {
    let path = find_program(name).with_context(|| format!("{name} is not installed"))?;
    let path = path.to_str().context("path")?.to_owned();
    s.meshctl(["sandbox", "image", "add", "--name", &s.name, name, &path])?.ok()?;
    s.kubectl(["create", "ns", name])?.ok()?;
    let mut pod = json!({"terminationGracePeriodSeconds": 2, "volumes": volumes});
    if let (Some(pod), Some(spec)) = (pod.as_object_mut(), spec.as_object()) {
        pod.extend(spec.clone());
    }
    let objects = json!({"apiVersion": "v1", "kind": "List", "items": [
        {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
         "spec": {"selector": {"matchLabels": {"app": name}}, "template": {
            "metadata": {"labels": {"app": name}, "annotations": {"meshctl.dev/inject": "enabled"}}, "spec": pod}}},
        {"apiVersion": "v1", "kind": "Service", "metadata": {"name": name},
         "spec": {"selector": {"app": name}, "ports": [{"port": port, "targetPort": port}]}},
        {"apiVersion": "v1", "kind": "Pod",
         "metadata": {"name": "caller", "annotations": {"meshctl.dev/inject": "enabled"}},
         "spec": {"terminationGracePeriodSeconds": 1, "containers": [{"name": "main", "image": "sh",
            "args": ["-c", "trap 'exit 0' TERM; while true; do sleep 1 & wait $!; done"]}]}},
    ]});
    s.kubectl_with_input(["-n", name, "apply", "-f", "-"], &objects.to_string())?.ok()?;
    s.kubectl(["-n", name, "wait", "--for=condition=Available", &format!("deploy/{name}"), "--timeout=60s"])?.ok()?;
    s.kubectl(["-n", name, "wait", "--for=condition=Ready", "pod/caller", "--timeout=60s"])?.ok()?;
    Ok(())
}

fn call(s: &Sandbox, ns: &str, command: &[&str]) -> Result<crate::harness::Ran> {
    let mut arguments = vec!["-n", ns, "exec", "caller", "-c", "main", "--"];
    arguments.extend(command);
    s.kubectl(arguments)
}

/// The workload's row of `stat`, once its traffic shows.
fn row(s: &Sandbox, name: &str, key: &str, mut again: impl FnMut() -> Result<()>) -> Result<Value> {
    eventually(Duration::from_secs(15), "the traffic shows up in stat", || {
        again()?;
        let rows = s.meshctl(["stat", &format!("deploy/{name}"), "-n", name, "-o", "json"])?.ok()?.stdout;
        let row = serde_json::from_str::<Vec<Value>>(&rows)?.into_iter().next().context("no row")?;
        ensure!(row[key].as_f64().is_some_and(|value| value > 0.0), "{row}");
        ensure!(row["mtls_rate"] == 1.0, "{row}");
        Ok(row)
    })
}

fn nginx_answers_curl() -> Result<()> {
    let s = SHOP.get()?;
    // Workers as the user who starts them: without root a pod has no other.
    let config = "user root; daemon off; pid /data/pid; error_log stderr; events {} http { access_log off; \
                  client_body_temp_path /data/a; proxy_temp_path /data/b; fastcgi_temp_path /data/c; \
                  uwsgi_temp_path /data/d; scgi_temp_path /data/e; \
                  server { listen 8080; location / { return 200 'made by nginx'; } } }";
    let spec = json!({
        "initContainers": [{"name": "config", "image": "sh", "args": ["-c", format!("echo \"{config}\" > /data/nginx.conf")],
            "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
        "containers": [{"name": "main", "image": "nginx", "args": ["-c", "/data/nginx.conf"],
            "ports": [{"containerPort": 8080}], "readinessProbe": {"httpGet": {"port": 8080}, "periodSeconds": 1},
            "volumeMounts": [{"name": "data", "mountPath": "/data"}]}],
    });
    deploy(s, "nginx", 8080, spec, &[json!({"name": "data", "emptyDir": {}})])?;
    let curl = || {
        call(s, "nginx", &["curl", "-sS", "--max-time", "3", "http://nginx:8080/"])?
            .ok()?
            .says("made by nginx")
            .map(|_| ())
    };
    curl()?;
    row(s, "nginx", "rps", curl)?;
    Ok(())
}

fn redis_answers_redis_cli() -> Result<()> {
    let s = SHOP.get()?;
    let spec = json!({"containers": [{"name": "main", "image": "redis-server",
        "args": ["--bind", "0.0.0.0", "--protected-mode", "no", "--save", "", "--dir", "/tmp"],
        "ports": [{"containerPort": 6379}], "readinessProbe": {"tcpSocket": {"port": 6379}, "periodSeconds": 1}}]});
    deploy(s, "redis-server", 6379, spec, &[])?;
    let cli = |command: &[&str]| {
        let mut all = vec!["redis-cli", "-h", "redis-server"];
        all.extend(command);
        call(s, "redis-server", &all)?.ok()
    };
    cli(&["set", "greeting", "from-redis"])?.says("OK")?;
    row(s, "redis-server", "tcp_read_bytes_rate", || cli(&["get", "greeting"])?.says("from-redis").map(|_| ()))?;
    Ok(())
}

fn postgres_answers_psql() -> Result<()> {
    let s = SHOP.get()?;
    let initdb = find_program("initdb").context("initdb is not installed")?;
    // PostgreSQL refuses to run as root.
    let user = json!({"runAsUser": 65534, "runAsGroup": 65534});
    let mount = json!([{"name": "data", "mountPath": "/pg"}]);
    let prepare = format!(
        "{} -D /pg/db -U postgres --auth=trust -N >/dev/null && echo 'host all all all trust' >> /pg/db/pg_hba.conf",
        initdb.display()
    );
    let spec = json!({
        "securityContext": {"fsGroup": 65534},
        "initContainers": [{"name": "initdb", "image": "sh", "args": ["-c", prepare], "securityContext": user, "volumeMounts": mount}],
        "containers": [{"name": "main", "image": "postgres", "securityContext": user, "volumeMounts": mount,
            "args": ["-D", "/pg/db", "-c", "listen_addresses=*", "-c", "unix_socket_directories=/pg", "-c", "fsync=off"],
            "ports": [{"containerPort": 5432}], "readinessProbe": {"tcpSocket": {"port": 5432}, "periodSeconds": 1}}],
    });
    deploy(s, "postgres", 5432, spec, &[json!({"name": "data", "emptyDir": {}})])?;
    let psql = || {
        let query = ["psql", "-h", "postgres", "-U", "postgres", "-tAc", "select 'from-' || 'postgres'"];
        call(s, "postgres", &query)?.ok()?.says("from-postgres").map(|_| ())
    };
    eventually(Duration::from_secs(20), "PostgreSQL answers", psql)?;
    row(s, "postgres", "tcp_read_bytes_rate", psql)?;
    Ok(())
}
