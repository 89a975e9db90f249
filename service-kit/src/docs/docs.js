// Shows the document of this service. Nothing is asked of another origin: no validator, no fonts.

window.ui = window.SwaggerUIBundle({
  dom_id: "#docs",
  url: "/openapi.json",
  validatorUrl: null,
  deepLinking: true,
  displayRequestDuration: true,
  defaultModelsExpandDepth: 0,
});
