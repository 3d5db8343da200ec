//! Assembles the API document from the handlers' entries, and adds the parameters and errors that all
//! routes of an [`Access`] share. Shared parts appear once, under `components`.

use actix_web::{HttpResponse, Responder, web};
use indexmap::IndexMap;
use utoipa::OpenApi;
use utoipa::openapi::example::ExampleBuilder;
use utoipa::openapi::path::{Operation, Parameter, ParameterIn};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    Components, ContentBuilder, HeaderBuilder, ObjectBuilder, OpenApi as Document, Ref, RefOr,
    Response, ResponseBuilder, Schema, Type,
};

use super::endpoint::{Access, Endpoint};
use super::envelope::Envelope;
use super::error::ErrorCode;
use super::{examples, parameters, schemas};

/// The document's address.
pub const ADDRESS: &str = "/v3/api-docs";

/// The errors of authentication and limits, on every route that is not open.
const OF_CALLERS: [ErrorCode; 11] = [
    ErrorCode::Invalid,
    ErrorCode::NoTenant,
    ErrorCode::BadHeader,
    ErrorCode::NoToken,
    ErrorCode::TokenExpired,
    ErrorCode::TokenInvalid,
    ErrorCode::Forbidden,
    ErrorCode::WrongTenant,
    ErrorCode::TooMany,
    ErrorCode::Internal,
    ErrorCode::Unavailable,
];
/// The errors of every route with a body.
const OF_BODIES: [ErrorCode; 2] = [ErrorCode::TooLarge, ErrorCode::NotJson];

#[derive(OpenApi)]
#[openapi(
    info(
        title = "aura-hitl",
        description = "Human-in-the-loop approvals: decides once, records, and wakes the agent.",
        license(name = "Apache-2.0", identifier = "Apache-2.0")
    ),
    servers((url = "/api", description = "As the Gateway forwards it"), (url = "/", description = "With /api stripped")),
    components(schemas(Envelope<serde_json::Value>, schemas::AnyJson, schemas::PlanStep)),
)]
struct Frame;

/// Serves the document. Swagger UI shows it at `/swagger-ui/`.
#[utoipa::path(
    get, path = ADDRESS,
    responses((status = 200, description = "This document", body = Object, example = json!({ "openapi": "3.1.0" })))
)]
pub async fn serve(document: web::Data<Document>) -> impl Responder {
    HttpResponse::Ok().json(document)
}

/// The document of these routes.
#[must_use]
pub fn assemble(endpoints: Vec<Endpoint>) -> Document {
    let mut document = Frame::openapi();
    let mut components = document.components.take().unwrap_or_default();
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build();
    components.add_security_scheme("bearer", SecurityScheme::Http(bearer));
    for endpoint in endpoints {
        let Endpoint { path, access, errors, documentation: mut item, components: its, .. } =
            endpoint;
        components.schemas.extend(its.schemas);
        let operations = [&mut item.get, &mut item.post, &mut item.put, &mut item.patch];
        for operation in operations.into_iter().chain([&mut item.delete]).flatten() {
            complete(operation, access, errors, &mut components);
        }
        document.paths.paths.entry(path).or_default().merge_operations(item);
    }
    refer_to_views(&mut components);
    document.components = Some(components);
    document
}

/// Adds to an operation what all operations with this access share.
fn complete(
    operation: &mut Operation,
    access: Access,
    errors: &[ErrorCode],
    components: &mut Components,
) {
    name(operation);
    remove_errors_section(operation);
    refer_to_parameters(operation, access, components);
    let mut codes = vec![ErrorCode::MethodNotAllowed];
    codes.extend(errors);
    if access != Access::Open {
        let bearer = SecurityRequirement::new("bearer", Vec::<String>::new());
        operation.security = Some(vec![bearer]);
        codes.extend(OF_CALLERS);
    }
    if operation.request_body.is_some() {
        codes.extend(OF_BODIES);
    }
    refer_to_errors(operation, &codes, components);
}

/// Prefixes an operation's id with its tag: handlers in different files have the same names.
fn name(operation: &mut Operation) {
    let tag = operation.tags.as_ref().and_then(|tags| tags.first());
    if let (Some(tag), Some(name)) = (tag, &operation.operation_id) {
        operation.operation_id = Some(format!("{tag}_{name}"));
    }
}

/// Removes `# Errors` sections from descriptions: the document lists the errors itself.
fn remove_errors_section(operation: &mut Operation) {
    let kept = operation.description.take();
    let kept = kept.and_then(|text| Some(text.split("# Errors").next()?.trim().to_owned()));
    operation.description = kept.filter(|text| !text.is_empty());
}

/// Replaces shared parameters by references. Parameters of the path come first, callers' headers last.
fn refer_to_parameters(operation: &mut Operation, access: Access, components: &mut Components) {
    let mut shared = |(name, parameter): (&str, Parameter)| {
        components.parameters.insert(name.to_owned(), parameter.into());
        RefOr::Ref(Ref::new(format!("#/components/parameters/{name}")))
    };
    let mut own = operation.parameters.take().unwrap_or_default();
    own.sort_by_key(|one| !matches!(one, RefOr::T(one) if one.parameter_in == ParameterIn::Path));
    for parameter in &mut own {
        let RefOr::T(found) = &*parameter else { continue };
        let is_known = |(_, known): &parameters::Named| {
            known.name == found.name && known.parameter_in == found.parameter_in
        };
        if let Some(known) = parameters::of_handlers().into_iter().find(is_known) {
            *parameter = shared(known);
        }
    }
    own.extend(parameters::of_callers(access).into_iter().map(shared));
    operation.parameters = Some(own).filter(|parameters| !parameters.is_empty());
}

/// Replaces the views in envelopes by references: utoipa inlines the `T` of an `Envelope<T>`.
fn refer_to_views(components: &mut Components) {
    let known = components.schemas.clone();
    for schema in components.schemas.values_mut() {
        let RefOr::T(Schema::Object(envelope)) = schema else { continue };
        let Some(data) = envelope.properties.get_mut("data") else { continue };
        if let Some((name, _)) = known.iter().find(|(_, view)| *view == data) {
            *data = RefOr::Ref(Ref::from_schema_name(name));
        }
    }
}

/// Adds an answer for each status, with its error codes.
fn refer_to_errors(operation: &mut Operation, codes: &[ErrorCode], components: &mut Components) {
    let mut by_status = IndexMap::<_, Vec<_>>::new();
    for code in codes {
        by_status.entry(code.status()).or_default().push(*code);
    }
    for (status, codes) in by_status {
        let name = codes.iter().map(|code| code.as_str()).collect::<Vec<_>>().join("_");
        let answer = RefOr::Ref(Ref::from_response_name(&name));
        operation.responses.responses.insert(status.as_str().to_owned(), answer);
        components.responses.entry(name).or_insert_with(|| error(&codes).into());
    }
}

/// The answer with one status: its codes, each with an example.
fn error(codes: &[ErrorCode]) -> Response {
    let status = codes.first().map(|code| code.status()).unwrap_or_default();
    let reason = status.canonical_reason().unwrap_or("Error");
    let names = codes.iter().map(|code| code.as_str()).collect::<Vec<_>>().join(", ");
    let examples = codes.iter().map(|code| {
        (code.as_str(), ExampleBuilder::new().value(Some(examples::failure(*code))).build())
    });
    let content = ContentBuilder::new()
        .schema(Some(Ref::from_schema_name("Envelope_Value")))
        .examples_from_iter(examples);
    let response = ResponseBuilder::new()
        .description(format!("{reason}: {names}"))
        .content("application/json", content.build());
    let (name, description) = match status.as_u16() {
        401 => ("WWW-Authenticate", "Bearer"),
        429 | 503 => ("Retry-After", "Seconds to wait before trying again."),
        405 => ("Allow", "The methods that the address answers."),
        _ => return response.build(),
    };
    let text = ObjectBuilder::new().schema_type(Type::String);
    let header = HeaderBuilder::new().description(Some(description)).schema(Some(text));
    response.header(name, header.build()).build()
}
