//! Creating and changing objects: metadata, admission, optimistic concurrency.

use super::decode::{check_type, parse, unsupported_media};
use super::kinds::Resource;
use super::service::Call;
use super::status::ApiError;
use super::store::{Key, Object};
use super::{admission, allocate, apply, crd, events, patch as patches, rbac, settle, timestamp, uid, validate};
use serde_json::{Map, Value, json};

/// How often a change is computed anew because somebody else was faster.
const ATTEMPTS: usize = 10;

/// Creates an object.
pub(super) async fn create(call: &Call, mut object: Value) -> Result<Object, ApiError> {
    check_fields(call, &mut object)?;
    prepare_new(call, &mut object)?;
    admission::namespace_open(call, &object)?;
    let manager = call.manager();
    insert(call, object, |object| {
        apply::track_update(&call.resource, None, object, &manager, None, &timestamp());
        Ok(())
    })
    .await
}

async fn insert(
    call: &Call,
    mut object: Value,
    track: impl FnOnce(&mut Value) -> Result<(), ApiError>,
) -> Result<Object, ApiError> {
    let resource = &call.resource;
    admission::admit(call, admission::Operation::Create, None, &mut object).await?;
    track(&mut object)?;
    validate::validate(resource, &object, None)?;
    rbac::check_escalation(call, &object)?;
    admission::check(call, admission::Operation::Create, None, Some(&object)).await?;
    store_form(resource, &mut object);
    let key = Key::new(call.namespace(), object["metadata"]["name"].as_str().unwrap_or_default());
    let created = call.api.store().transact(&resource.collection(), |tx| {
        if tx.get(&key).is_some() {
            return Err(ApiError::already_exists(&resource.qualified(), &key.name));
        }
        allocate::assign(&call.api, resource, tx.objects().map(|o| &**o), None, &mut object)?;
        if call.dry_run() { Ok(Object::new(object)) } else { Ok(tx.put(key, object)) }
    })?;
    settle::after_write(call, Some(&created));
    Ok(created)
}

/// Metadata of an object about to be created.
fn prepare_new(call: &Call, object: &mut Value) -> Result<(), ApiError> {
    let resource = &call.resource;
    set_namespace(call, object)?;
    let has_status = resource.has("status");
    let Some(metadata) = object["metadata"].as_object_mut() else {
        return Err(ApiError::bad_request("metadata is not an object"));
    };
    if metadata.get("resourceVersion").and_then(Value::as_str).is_some_and(|version| !version.is_empty()) {
        return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
    }
    let text = |field: &str| metadata.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let (mut name, prefix) = (text("name"), text("generateName"));
    if name.is_empty() && !prefix.is_empty() {
        // Names of 63 bytes are good for all kinds; a long prefix makes room for the suffix.
        let cut = prefix.char_indices().map(|(i, _)| i).take_while(|i| *i < 58).last().map_or(0, |i| i + 1);
        name = format!("{}{}", prefix.get(..cut).unwrap_or(&prefix), name_suffix());
    }
    if name.is_empty() {
        let cause = (
            "FieldValueRequired".to_owned(),
            "metadata.name".to_owned(),
            "Required value: name or generateName is required".to_owned(),
        );
        return Err(ApiError::invalid(&resource.qualified_kind(), "", vec![cause]));
    }
    for field in ["selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "managedFields", "generation"] {
        metadata.shift_remove(field);
    }
    metadata.insert("name".to_owned(), name.into());
    metadata.insert("uid".to_owned(), uid().into());
    metadata.insert("creationTimestamp".to_owned(), timestamp().into());
    if resource.counts_generations() {
        metadata.insert("generation".to_owned(), 1.into());
    }
    if has_status && let Some(fields) = object.as_object_mut() {
        fields.shift_remove("status");
    }
    admission::initial_state(resource, object);
    Ok(())
}

fn set_namespace(call: &Call, object: &mut Value) -> Result<(), ApiError> {
    let given = object["metadata"]["namespace"].as_str().unwrap_or_default();
    if !call.resource.namespaced {
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.shift_remove("namespace");
        }
        return Ok(());
    }
    if !given.is_empty() && given != call.namespace() {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    object["metadata"]["namespace"] = call.namespace().into();
    Ok(())
}

/// Five characters that spell nothing.
pub(super) fn name_suffix() -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    super::random::<5>().iter().map(|byte| ALPHABET[*byte as usize % ALPHABET.len()] as char).collect()
}

/// Refuses wrong types, reports unknown fields as `fieldValidation` asks, and drops them.
fn check_fields(call: &Call, object: &mut Value) -> Result<(), ApiError> {
    validate::check_types(&call.resource, object)?;
    let mode = call.query.get("fieldValidation").unwrap_or("Warn");
    let unknown = validate::unknown_fields(&call.resource, object);
    let described = || unknown.iter().map(|field| format!("unknown field \"{field}\""));
    if mode == "Strict" && !unknown.is_empty() {
        let (kind, version) = (&call.resource.kind, &call.resource.version);
        return Err(ApiError::bad_request(format!(
            "{kind} in version \"{version}\" cannot be handled as a {kind}: strict decoding error: {}",
            described().collect::<Vec<_>>().join(", ")
        )));
    }
    if mode == "Warn" {
        described().for_each(|warning| call.warn(warning));
    }
    unknown.iter().for_each(|field| remove_field(object, field));
    crd::prune(&call.resource, object);
    Ok(())
}

/// Removes the field at `spec.containers[0].name`.
fn remove_field(object: &mut Value, path: &str) {
    let mut place = object;
    let mut steps = path.split('.').peekable();
    while let Some(step) = steps.next() {
        let (name, indices) = step.split_once('[').unwrap_or((step, ""));
        if steps.peek().is_none() && indices.is_empty() {
            if let Some(fields) = place.as_object_mut() {
                fields.shift_remove(name);
            }
            return;
        }
        let Some(mut inner) = place.get_mut(name) else { return };
        for index in indices.split('[').filter(|index| !index.is_empty()) {
            let Ok(index) = index.trim_end_matches(']').parse::<usize>() else { return };
            let Some(item) = inner.get_mut(index) else { return };
            inner = item;
        }
        place = inner;
    }
}

/// What the store keeps: one version of events, whichever was written.
fn store_form(resource: &Resource, object: &mut Value) {
    if resource.group == "events.k8s.io" {
        events::convert(object, "v1");
        object["apiVersion"] = "v1".into();
    }
}

/// Replaces an object (PUT), or the part of it that `subresource` is.
pub(super) async fn replace(call: &Call, object: Value, subresource: Option<&str>) -> Result<(u16, Object), ApiError> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    if !name.is_empty() && name != call.name() {
        return Err(ApiError::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.name()
        )));
    }
    let collection = call.resource.collection();
    if subresource.is_none()
        && created_by_update(&call.resource)
        && call.api.store().get(&collection, call.namespace(), call.name()).is_none()
    {
        let mut object = object;
        object["metadata"]["name"] = call.name().into();
        return Ok((201, create(call, object).await?));
    }
    let object = &object;
    let updated = update(call, subresource, Track::Update, |_| Ok(object.clone())).await?;
    Ok((200, updated))
}

/// Kinds whose PUT creates what does not exist.
fn created_by_update(resource: &Resource) -> bool {
    matches!(
        (resource.group.as_str(), resource.plural.as_str()),
        ("", "endpoints" | "events" | "services")
            | ("coordination.k8s.io", "leases")
            | ("rbac.authorization.k8s.io", _)
    )
}

/// Patches an object, or the part of it that `subresource` is.
pub(super) async fn patch(call: &Call, bytes: &[u8], subresource: Option<&str>) -> Result<(u16, Object), ApiError> {
    let body = parse(call, bytes)?;
    if call.content_type != "application/apply-patch+yaml" {
        if call.query.flag("force") {
            return Err(ApiError::bad_request(
                "PatchOptions.meta.k8s.io \"\" is invalid: force: Forbidden: may not be specified for non-apply patch",
            ));
        }
        let patched = update(call, subresource, Track::Update, |current| patched(call, current, &body)).await?;
        return Ok((200, patched));
    }
    let manager = apply_manager(call)?;
    let force = call.query.flag("force");
    check_applied(call, &body)?;
    let merge = |current: Option<&Value>| {
        apply::server_side_apply(&call.resource, current, &body, &manager, subresource, force, &timestamp())
    };
    let exists = call.api.store().get(&call.resource.collection(), call.namespace(), call.name()).is_some();
    if exists {
        let updated = update(call, subresource, Track::Applied, |current| merge(Some(current))).await?;
        return Ok((200, updated));
    }
    if subresource.is_some() {
        return Err(call.not_found());
    }
    rbac::require(call, "create")?;
    let mut object = merge(None)?;
    let managed = object["metadata"]["managedFields"].clone();
    object["metadata"]["name"] = call.name().into();
    check_fields(call, &mut object)?;
    prepare_new(call, &mut object)?;
    admission::namespace_open(call, &object)?;
    let created = insert(call, object, |object| {
        object["metadata"]["managedFields"] = managed;
        Ok(())
    })
    .await?;
    Ok((201, created))
}

fn apply_manager(call: &Call) -> Result<String, ApiError> {
    call.query.get("fieldManager").map(str::to_owned).ok_or_else(|| {
        let why = "Required value: is required for apply patch".to_owned();
        let cause = ("FieldValueRequired".to_owned(), "fieldManager".to_owned(), why);
        ApiError::invalid("PatchOptions.meta.k8s.io", "", vec![cause])
    })
}

fn check_applied(call: &Call, body: &Value) -> Result<(), ApiError> {
    let fields = body.as_object().ok_or_else(|| ApiError::bad_request("error decoding YAML: not an object"))?;
    check_type(fields, "kind", &call.resource.kind)?;
    check_type(fields, "apiVersion", &call.resource.api_version())?;
    let metadata = |field| body["metadata"][field].as_str().unwrap_or_default();
    if !metadata("name").is_empty() && metadata("name") != call.name() {
        return Err(ApiError::bad_request(format!(
            "metadata.name: Invalid value: \"{}\": must match the name on the URL ({})",
            metadata("name"),
            call.name()
        )));
    }
    if !metadata("managedFields").is_empty() || body["metadata"]["managedFields"].is_array() {
        return Err(ApiError::bad_request("metadata.managedFields must be nil"));
    }
    Ok(())
}

/// Applies a patch of the request's content type.
pub(super) fn patched(call: &Call, current: &Value, body: &Value) -> Result<Value, ApiError> {
    const ACCEPTED: &str = "application/json-patch+json, application/merge-patch+json, application/strategic-merge-patch+json, application/apply-patch+yaml";
    match call.content_type.as_str() {
        "application/json-patch+json" => patches::json_patch(current, body),
        "application/merge-patch+json" => Ok(patches::merge_patch(current, body)),
        "application/strategic-merge-patch+json" if call.resource.custom.is_none() => {
            patches::strategic_merge(&call.resource, current, body)
        }
        "application/strategic-merge-patch+json" => Err(unsupported_media(
            "application/json-patch+json, application/merge-patch+json, application/apply-patch+yaml",
        )),
        _ => Err(unsupported_media(ACCEPTED)),
    }
}

/// Who keeps `managedFields` current.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Track {
    /// This module, for an ordinary write.
    Update,
    /// Server-side apply has.
    Applied,
}

/// Changes an existing object to what `change` makes of it, again and again until nobody else interferes.
pub(super) async fn update(
    call: &Call,
    subresource: Option<&str>,
    track: Track,
    change: impl Fn(&Value) -> Result<Value, ApiError>,
) -> Result<Object, ApiError> {
    let (resource, store) = (&call.resource, call.api.store());
    let key = Key::new(call.namespace(), call.name());
    for _ in 0..ATTEMPTS {
        let stored = store.get(&resource.collection(), &key.namespace, &key.name).ok_or_else(|| call.not_found())?;
        let current = super::verbs::present(call, &stored);
        let mut next = change(&current)?;
        check_revision(call, &current, &next)?;
        if subresource.is_none() {
            check_fields(call, &mut next)?;
        } else {
            validate::check_types(resource, &next)?;
            crd::prune(resource, &mut next);
        }
        let mut next = merge_part(resource, subresource, &current, next);
        keep_metadata(&current, &mut next);
        admission::admit(call, admission::Operation::Update, Some(&current), &mut next).await?;
        if track == Track::Update {
            let manager = call.manager();
            apply::track_update(resource, Some(&current), &mut next, &manager, subresource, &timestamp());
        }
        count_generation(resource, &current, &mut next);
        validate::validate(resource, &next, Some(&current))?;
        rbac::check_escalation(call, &next)?;
        admission::check(call, admission::Operation::Update, Some(&current), Some(&next)).await?;
        if unchanged(&current, &next) {
            return Ok(stored);
        }
        store_form(resource, &mut next);
        if let Some(updated) = commit(call, &key, &stored, next)? {
            settle::after_write(call, Some(&updated));
            return Ok(updated);
        }
    }
    Err(conflict(call))
}

/// Stores `next` if the object still is `stored`; removes it if this was the last thing its deletion waited for.
fn commit(call: &Call, key: &Key, stored: &Object, mut next: Value) -> Result<Option<Object>, ApiError> {
    call.api.store().transact(&call.resource.collection(), |tx| {
        match tx.get(key) {
            None => return Err(call.not_found()),
            Some(now) if !Object::ptr_eq(now, stored) => return Ok(None),
            Some(_) => {}
        }
        let others = tx.objects().filter(|object| !Object::ptr_eq(object, stored)).map(|object| &**object);
        allocate::assign(&call.api, &call.resource, others, Some(stored), &mut next)?;
        if call.dry_run() {
            return Ok(Some(Object::new(next)));
        }
        if super::delete::is_finished(&call.resource, &next) {
            Ok(tx.remove_as(key, next))
        } else {
            Ok(Some(tx.put(key.clone(), next)))
        }
    })
}

/// 409: somebody else changed the object.
fn conflict(call: &Call) -> ApiError {
    let why = "the object has been modified; please apply your changes to the latest version and try again";
    ApiError::conflict(&call.resource.qualified(), call.name(), why)
}

fn check_revision(call: &Call, current: &Value, next: &Value) -> Result<(), ApiError> {
    let field = |object: &Value, name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
    let wanted = field(next, "uid");
    if !wanted.is_empty() && wanted != field(current, "uid") {
        let why = format!(
            "Precondition failed: UID in precondition: {wanted}, UID in object meta: {}",
            field(current, "uid")
        );
        return Err(ApiError::conflict(&call.resource.qualified(), call.name(), why));
    }
    let version = field(next, "resourceVersion");
    if version.is_empty() || version == "0" {
        if call.resource.custom.is_some() && call.info.verb == "update" && call.info.subresource != "scale" {
            let why = "Invalid value: 0: must be specified for an update".to_owned();
            let cause = ("FieldValueInvalid".to_owned(), "metadata.resourceVersion".to_owned(), why);
            return Err(ApiError::invalid(&call.resource.qualified_kind(), call.name(), vec![cause]));
        }
        return Ok(());
    }
    if version == field(current, "resourceVersion") { Ok(()) } else { Err(conflict(call)) }
}

/// What a write through `subresource` may change of `current`, taken from `next`.
fn merge_part(resource: &Resource, subresource: Option<&str>, current: &Value, mut next: Value) -> Value {
    let take = |path: &[&str], mut next: Value| {
        let mut merged = current.clone();
        let managed = next["metadata"]["managedFields"].take();
        if !managed.is_null() {
            merged["metadata"]["managedFields"] = managed;
        }
        let mut value = &next;
        let mut place = &mut merged;
        for step in path {
            value = &value[*step];
            place = &mut place[*step];
        }
        *place = value.clone();
        merged
    };
    match subresource {
        Some("status") => take(&["status"], next),
        Some("finalize") => take(&["spec", "finalizers"], next),
        Some("ephemeralcontainers") => take(&["spec", "ephemeralContainers"], next),
        Some("resize") => take(&["spec", "containers"], next),
        _ => {
            keep_status(resource, current, &mut next);
            if resource.group.is_empty() && resource.plural == "namespaces" {
                next["spec"] = current["spec"].clone();
            }
            next
        }
    }
}

fn keep_status(resource: &Resource, current: &Value, next: &mut Value) {
    if !resource.has("status") {
        return;
    }
    if let Some(fields) = next.as_object_mut() {
        match current.get("status") {
            Some(status) => fields.insert("status".to_owned(), status.clone()),
            None => fields.shift_remove("status"),
        };
    }
}

/// Metadata that only the API itself changes.
fn keep_metadata(current: &Value, next: &mut Value) {
    if !next["metadata"].is_object() {
        next["metadata"] = json!({});
    }
    let Some(metadata) = next["metadata"].as_object_mut() else { return };
    const KEPT: &[&str] = &[
        "name",
        "generateName",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
    ];
    for field in KEPT {
        match current["metadata"].get(field) {
            Some(value) => metadata.insert((*field).to_owned(), value.clone()),
            None => metadata.shift_remove(*field),
        };
    }
    metadata.shift_remove("selfLink");
    if !metadata.contains_key("managedFields")
        && let Some(managed) = current["metadata"].get("managedFields")
    {
        metadata.insert("managedFields".to_owned(), managed.clone());
    }
}

fn count_generation(resource: &Resource, current: &Value, next: &mut Value) {
    if !resource.counts_generations() {
        return;
    }
    let desired = |object: &Value| -> Map<String, Value> {
        let ignored = |key: &str| key == "metadata" || key == "status" && resource.has("status");
        object
            .as_object()
            .into_iter()
            .flatten()
            .filter(|(key, _)| !ignored(key))
            .map(|(k, v)| (k.clone(), v.clone()))
            .collect()
    };
    if desired(current) != desired(next) {
        let generation = current["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
        next["metadata"]["generation"] = generation.into();
    }
}

/// True if nothing but the times in `managedFields` differs: such a write is none.
fn unchanged(current: &Value, next: &Value) -> bool {
    let strip = |object: &Value| {
        let mut object = object.clone();
        for entry in object["metadata"]["managedFields"].as_array_mut().into_iter().flatten() {
            entry["time"] = Value::Null;
        }
        object
    };
    strip(current) == strip(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_fields_by_path() {
        let mut object = json!({"spec": {"a": 1, "list": [{"b": 1}, {"b": 2, "c": 3}]}});
        for path in ["spec.a", "spec.list[1].b", "spec.list[7].b", "nothing.here", "spec.list[1]"] {
            remove_field(&mut object, path);
        }
        assert_eq!(object, json!({"spec": {"list": [{"b": 1}, {"c": 3}]}}));
    }

    #[test]
    fn names_are_made_of_harmless_letters() {
        let suffix = name_suffix();
        assert!(
            suffix.len() == 5 && suffix.chars().all(|c| c.is_ascii_alphanumeric() && !"aeiou".contains(c)),
            "{suffix}"
        );
    }
}
