{{/* The chart's name, and that of a release: aura-hitl when the release is called so. */}}
{{- define "aura-hitl.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "aura-hitl.fullname" -}}
{{- $name := include "aura-hitl.name" . }}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains $name .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{- define "aura-hitl.selectorLabels" -}}
app.kubernetes.io/name: {{ include "aura-hitl.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: server
{{- end }}

{{/* For everything but the migration, which no Service, budget or policy must take for a server. */}}
{{- define "aura-hitl.labels" -}}
{{ include "aura-hitl.selectorLabels" . }}
{{ include "aura-hitl.releaseLabels" . }}
{{- end }}

{{- define "aura-hitl.releaseLabels" -}}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "aura-hitl.migrationLabels" -}}
app.kubernetes.io/name: {{ include "aura-hitl.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: migration
{{ include "aura-hitl.releaseLabels" . }}
{{- end }}

{{- define "aura-hitl.serviceAccount" -}}
{{- if .Values.serviceAccount.create }}
{{- default (include "aura-hitl.fullname" .) .Values.serviceAccount.name }}
{{- else }}
{{- default "default" .Values.serviceAccount.name }}
{{- end }}
{{- end }}

{{- define "aura-hitl.image" -}}
{{ .Values.image.repository }}:{{ default .Chart.AppVersion .Values.image.tag }}
{{- end }}

{{/* The file of AURA_HITL_CONFIG. A string, number, boolean or list of strings is the same in JSON as
in TOML; toToml would write 7 as 7.0. */}}
{{- define "aura-hitl.toml" -}}
# Migrations run in a hook before the roll-out.
auto_migrate = false
{{- range $key, $value := .Values.config }}
{{ $key }} = {{ toJson $value }}
{{- end }}
{{- if .Values.policy }}
policy_file = "/config/policy.toml"
{{- end }}
{{- with .Values.configTables }}

{{ . }}
{{- end }}
{{- end }}

{{/* The files of the volume that is mounted at /config. */}}
{{- define "aura-hitl.files" -}}
aura-hitl.toml: |
  {{- include "aura-hitl.toml" . | nindent 2 }}
{{- with .Values.policy }}
policy.toml: {{ toJson . }}
{{- end }}
{{- end }}

{{/* Keys of existingSecret that must be there, as a JSON list. */}}
{{- define "aura-hitl.secretKeys" -}}
{{- $keys := list "DATABASE_URL" "JWT_SECRET" }}
{{- if not .Values.redis.host }}
{{- $keys = append $keys "REDIS_URL" }}
{{- else if .Values.redis.password }}
{{- $keys = append $keys "REDIS_PASSWORD" }}
{{- end }}
{{- if .Values.previousJwtSecret }}
{{- $keys = append $keys "JWT_SECRET_PREVIOUS" }}
{{- end }}
{{- toJson $keys }}
{{- end }}

{{/* What server and migration have in common, so that the migration refuses the settings that the
servers would refuse. */}}
{{- define "aura-hitl.env" -}}
- name: AURA_HITL_CONFIG
  value: /config/aura-hitl.toml
{{- range include "aura-hitl.secretKeys" . | fromJsonArray }}
- name: {{ . }}_FILE
  value: /secrets/{{ . }}
{{- end }}
{{- with .Values.redis.host }}
- name: REDIS_HOST
  value: {{ . | quote }}
- name: REDIS_PORT
  value: {{ $.Values.redis.port | quote }}
{{- end }}
{{- if .Values.metrics.enabled }}
- name: AURA_HITL_METRICS_ADDRESS
  value: "0.0.0.0:{{ .Values.metrics.port }}"
{{- end }}
- name: RUST_LOG
  value: {{ .Values.logLevel | quote }}
{{- with .Values.otlpEndpoint }}
- name: OTEL_EXPORTER_OTLP_ENDPOINT
  value: {{ . | quote }}
{{- end }}
{{- with .Values.extraEnv }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "aura-hitl.mounts" -}}
- name: config
  mountPath: /config
  readOnly: true
- name: secrets
  mountPath: /secrets
  readOnly: true
{{- with .Values.extraVolumeMounts }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "aura-hitl.secretVolume" -}}
- name: secrets
  secret:
    secretName: {{ .secretName | default .Values.existingSecret }}
    defaultMode: 0440
    # A key that is missing keeps the pod from starting, and says so in its events.
    items:
      {{- range include "aura-hitl.secretKeys" . | fromJsonArray }}
      - key: {{ . }}
        path: {{ . }}
      {{- end }}
{{- with .Values.extraVolumes }}
{{ toYaml . }}
{{- end }}
{{- end }}

{{- define "aura-hitl.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile:
  type: RuntimeDefault
{{- end }}

{{- define "aura-hitl.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities:
  drop: [ALL]
{{- end }}

{{/* What the schema cannot say. */}}
{{- define "aura-hitl.checks" -}}
{{- $needed := add .Values.preStopSeconds 11 | int }}
{{- if lt (int .Values.terminationGracePeriodSeconds) $needed }}
{{- fail (printf "terminationGracePeriodSeconds is %d; with preStopSeconds = %d it must be at least %d, since the process takes up to 10 s after SIGTERM" (int .Values.terminationGracePeriodSeconds) (int .Values.preStopSeconds) $needed) }}
{{- end }}
{{- if and .Values.policy (hasKey .Values.config "policy_file") }}
{{- fail "policy is the text of the policy file, and config.policy_file another file; set one of them" }}
{{- end }}
{{- if and .Values.autoscaling.enabled (lt (int .Values.autoscaling.maxReplicas) (int .Values.autoscaling.minReplicas)) }}
{{- fail "autoscaling.maxReplicas is below autoscaling.minReplicas; raise it" }}
{{- end }}
{{- if and .Values.metrics.serviceMonitor.enabled (not .Values.metrics.enabled) }}
{{- fail "metrics.serviceMonitor needs metrics.enabled = true, the port that it reads" }}
{{- end }}
{{- end }}
