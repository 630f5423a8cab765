{{/* Names. A release called `interp` gives interp-webapp, interp-postgres, ... */}}
{{- define "interp.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 40 | trimSuffix "-" -}}
{{- else if contains .Chart.Name .Release.Name -}}
{{- .Release.Name | trunc 40 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name .Chart.Name | trunc 40 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{/* Labels: (list root component) */}}
{{- define "interp.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ $root.Chart.Name }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end -}}

{{- define "interp.labels" -}}
{{- $root := index . 0 -}}
{{ include "interp.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version }}
{{- end -}}

{{- define "interp.image" -}}
{{- if .digest -}}{{ .repository }}@{{ .digest }}{{- else -}}{{ .repository }}:{{ .tag }}{{- end -}}
{{- end -}}

{{- define "interp.pullSecrets" -}}
{{- with .Values.imagePullSecrets }}
imagePullSecrets:
{{- range . }}
  - name: {{ . }}
{{- end }}
{{- end }}
{{- end -}}

{{/* The restricted profile of pod security. (list uid) */}}
{{- define "interp.podSecurity" -}}
{{- $uid := index . 0 -}}
runAsNonRoot: true
runAsUser: {{ $uid }}
runAsGroup: {{ $uid }}
fsGroup: {{ $uid }}
fsGroupChangePolicy: OnRootMismatch
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{- define "interp.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
seccompProfile: {type: RuntimeDefault}
{{- end -}}

{{/* What short-lived containers may use: they wait, copy and run one client. */}}
{{- define "interp.smallResources" -}}
requests: {cpu: 50m, memory: 64Mi}
limits: {cpu: 500m, memory: 512Mi}
{{- end -}}

{{- define "interp.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end -}}

{{/* Secrets: (list root "postgres") -> the name of the one that is there, or of the one that this chart makes. */}}
{{- define "interp.secretName" -}}
{{- $root := index . 0 -}}
{{- $given := index $root.Values.secrets (index . 1) -}}
{{- $given.existingSecret | default (printf "%s-%s" (include "interp.fullname" $root) (kebabcase (index . 1))) -}}
{{- end -}}

{{/* One value of a Secret, base64: what values give; else what the cluster has (an upgrade changes nothing); else new. */}}
{{- define "interp.secretValue" -}}
{{- $root := index . 0 -}}{{- $name := index . 1 -}}{{- $key := index . 2 -}}{{- $given := index . 3 -}}{{- $path := index . 4 -}}
{{- $there := (lookup "v1" "Secret" $root.Release.Namespace $name).data | default dict -}}
{{- if $given -}}
{{- $given | b64enc -}}
{{- else if hasKey $there $key -}}
{{- index $there $key -}}
{{- else if $root.Values.secrets.generate -}}
{{- randAlphaNum 32 | b64enc -}}
{{- else -}}
{{- fail (printf "%s is missing: give it, name an existingSecret, or set secrets.generate" $path) -}}
{{- end -}}
{{- end -}}

{{/* Postgres: where it is */}}
{{- define "interp.postgres.host" -}}
{{- if .Values.postgres.enabled -}}{{ include "interp.fullname" . }}-postgres{{- else -}}{{ .Values.postgres.external.host }}{{- end -}}
{{- end -}}
{{- define "interp.postgres.port" -}}
{{- if .Values.postgres.enabled -}}5432{{- else -}}{{ .Values.postgres.external.port }}{{- end -}}
{{- end -}}
{{- define "interp.postgres.sslmode" -}}
{{- if .Values.postgres.enabled -}}disable{{- else -}}{{ .Values.postgres.external.sslmode }}{{- end -}}
{{- end -}}
{{- define "interp.postgres.database" -}}
{{- if .Values.postgres.enabled -}}{{ .Values.postgres.database }}{{- else -}}{{ .Values.postgres.external.database }}{{- end -}}
{{- end -}}
{{- define "interp.postgres.user" -}}
{{- if .Values.postgres.enabled -}}{{ .Values.postgres.user }}{{- else -}}{{ .Values.postgres.external.user }}{{- end -}}
{{- end -}}

{{/* For psql, pg_isready and pg_dump */}}
{{- define "interp.postgres.clientEnv" -}}
- {name: PGHOST, value: {{ include "interp.postgres.host" . | quote }}}
- {name: PGPORT, value: {{ include "interp.postgres.port" . | quote }}}
- {name: PGDATABASE, value: {{ include "interp.postgres.database" . | quote }}}
- {name: PGUSER, value: {{ include "interp.postgres.user" . | quote }}}
- {name: PGSSLMODE, value: {{ include "interp.postgres.sslmode" . | quote }}}
- {name: PGCONNECT_TIMEOUT, value: "5"}
{{- if eq (include "interp.postgres.sslmode" .) "verify-full" }}
- {name: PGSSLROOTCERT, value: system}
{{- end }}
- name: PGPASSWORD
  valueFrom: {secretKeyRef: {name: {{ include "interp.secretName" (list . "postgres") }}, key: password}}
{{- end -}}

{{/* For Prisma: the kubelet puts the password into the URL, so it stands in no manifest and no ConfigMap. */}}
{{- define "interp.postgres.prismaEnv" -}}
{{- $mode := include "interp.postgres.sslmode" . -}}
{{- /* Prisma takes an unknown mode for `prefer`, and any certificate unless told to be strict. */ -}}
{{- $ssl := ternary "require&sslaccept=strict" $mode (eq $mode "verify-full") -}}
{{- $rest := printf "%s:%s/%s?sslmode=%s&connect_timeout=15" (include "interp.postgres.host" .) (include "interp.postgres.port" .) (include "interp.postgres.database" .) $ssl -}}
- name: POSTGRES_PASSWORD
  valueFrom: {secretKeyRef: {name: {{ include "interp.secretName" (list . "postgres") }}, key: password}}
- {name: POSTGRES_PRISMA_URL, value: {{ printf "postgres://%s:$(POSTGRES_PASSWORD)@%s" (include "interp.postgres.user" .) $rest | quote }}}
- {name: POSTGRES_URL_NON_POOLING, value: {{ printf "postgres://%s:$(POSTGRES_PASSWORD)@%s" (include "interp.postgres.user" .) $rest | quote }}}
{{- end -}}

{{/* S3. Two addresses: one with the bucket in the path (our clients), one that a bucket's name is put before (Neuronpedia's). */}}
{{- define "interp.s3.endpoint" -}}
{{- if .Values.s3.enabled -}}http://{{ include "interp.fullname" . }}-s3.{{ .Release.Namespace }}:8333{{- else -}}{{ .Values.s3.external.endpoint }}{{- end -}}
{{- end -}}
{{- define "interp.s3.publicEndpoint" -}}
{{- if not .Values.s3.enabled -}}{{ .Values.s3.external.endpoint }}
{{- else if .Values.ingress.enabled -}}https://{{ .Values.ingress.s3Host }}
{{- else -}}http://{{ .Release.Namespace }}.svc:8333{{- end -}}
{{- end -}}
{{- define "interp.s3.region" -}}
{{- if .Values.s3.enabled -}}us-east-1{{- else -}}{{ .Values.s3.external.region }}{{- end -}}
{{- end -}}
{{- define "interp.s3.port" -}}
{{- if .Values.s3.enabled -}}8333
{{- else -}}
{{- $url := urlParse .Values.s3.external.endpoint -}}
{{- regexFind "[0-9]+$" (regexFind ":[0-9]+$" $url.host) | default (ternary "443" "80" (eq $url.scheme "https")) -}}
{{- end -}}
{{- end -}}
{{/* (list root "s3Admin") */}}
{{- define "interp.s3.keys" -}}
- name: AWS_ACCESS_KEY_ID
  valueFrom: {secretKeyRef: {name: {{ include "interp.secretName" . }}, key: AWS_ACCESS_KEY_ID}}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom: {secretKeyRef: {name: {{ include "interp.secretName" . }}, key: AWS_SECRET_ACCESS_KEY}}
{{- end -}}

{{- define "interp.url" -}}
{{- if .Values.webapp.url -}}{{ .Values.webapp.url }}
{{- else if .Values.ingress.enabled -}}https://{{ .Values.ingress.host }}
{{- else -}}http://127.0.0.1:3000{{- end -}}
{{- end -}}

{{/* What is put for the placeholders of the built pages. */}}
{{- define "interp.publicEnv" -}}
- {name: NEXT_PUBLIC_URL, value: {{ include "interp.url" . | quote }}}
{{- range $name, $value := .Values.webapp.public }}
- {name: {{ printf "NEXT_PUBLIC_%s" $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end -}}

{{- define "interp.sql" -}}
{{- .Files.Get "files/seed.sql" -}}
{{- end -}}

{{/* Says which schema and which rows this release needs; the web app waits until the Job has written it. */}}
{{- define "interp.databaseHash" -}}
{{- $what := list (include "interp.image" .Values.webapp.image) .Values.webapp.users .Values.webapp.migrateCommand (include "interp.sql" .) (.Files.Get "files/wait-for-postgres.sh") -}}
{{- $what | toJson | sha256sum | trunc 10 -}}
{{- end -}}

{{/* (list root) -> the init container that waits for Postgres, and looks at the password's characters */}}
{{- define "interp.waitForPostgres" -}}
- name: wait-for-postgres
  image: {{ include "interp.image" .Values.postgres.image }}
  imagePullPolicy: {{ .Values.postgres.image.pullPolicy }}
  command: [sh, /scripts/wait-for-postgres.sh]
  env: {{- include "interp.postgres.clientEnv" . | nindent 4 }}
  securityContext: {{- include "interp.containerSecurity" . | nindent 4 }}
  resources: {{- include "interp.smallResources" . | nindent 4 }}
  volumeMounts:
    - {name: scripts, mountPath: /scripts, readOnly: true}
    - {name: tmp, mountPath: /tmp}
{{- end -}}
