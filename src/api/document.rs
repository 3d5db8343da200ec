//! The API document: what each handler says of itself, and what holds for all routes of a kind. What
//! several operations share is said once, under `components`.

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

/// Where the document is.
pub const ADDRESS: &str = "/v3/api-docs";

/// What a caller's identity and a call's limits may be answered, on every route that is not open.
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
/// What a body may be answered.
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

/// Adds what holds for all operations that these may call.
fn complete(
    operation: &mut Operation,
    access: Access,
    errors: &[ErrorCode],
    components: &mut Components,
) {
    name(operation);
    leave_out_what_is_for_programmers(operation);
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

/// Handlers in different files share names, and an operation's id must be its own.
fn name(operation: &mut Operation) {
    let tag = operation.tags.as_ref().and_then(|tags| tags.first());
    if let (Some(tag), Some(name)) = (tag, &operation.operation_id) {
        operation.operation_id = Some(format!("{tag}_{name}"));
    }
}

/// The handlers' `# Errors` sections say less than the answers that are listed here.
fn leave_out_what_is_for_programmers(operation: &mut Operation) {
    let kept = operation.description.take();
    let kept = kept.and_then(|text| Some(text.split("# Errors").next()?.trim().to_owned()));
    operation.description = kept.filter(|text| !text.is_empty());
}

/// Puts references in place of the parameters that other operations take, too: the address comes
/// first, the headers of callers last.
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

/// Puts references in place of the views in envelopes: utoipa writes the `T` of an `Envelope<T>` out.
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

/// Adds an answer for every status, with the codes that come with it.
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

/// The answer to one status: its codes, each with an example.
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
