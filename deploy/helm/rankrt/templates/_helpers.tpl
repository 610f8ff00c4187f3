{{/* The name of all objects: the release's, with the chart's unless it is in there. */}}
{{- define "rankrt.name" -}}
{{- if contains .Chart.Name .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}
{{- else }}{{ printf "%s-%s" .Release.Name .Chart.Name | trunc 52 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* The labels by which objects find the pods. They never change during the life of a release. */}}
{{- define "rankrt.selector" -}}
app.kubernetes.io/name: rankrt
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "rankrt.labels" -}}
{{ include "rankrt.selector" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "rankrt.image" -}}
{{- with .Values.image }}
{{- if .digest }}{{ .repository }}@{{ .digest }}
{{- else }}{{ .repository }}:{{ .tag | default (printf "%s%s" $.Chart.AppVersion (ternary "-gpu" "" (gt (int $.Values.gpus) 0))) }}
{{- end }}
{{- end }}
{{- end }}

{{/* The folder of a model in the server's container. */}}
{{- define "rankrt.folder" -}}
{{- if .claim }}{{ printf "/claims/%s/%s" .claim (.path | default "") | trimSuffix "/" }}
{{- else }}/models/{{ .name }}
{{- end }}
{{- end }}

{{- define "rankrt.confined" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* The same as request and limit: a whole number of CPUs that no other pod takes away. */}}
{{- define "rankrt.resources" -}}
requests: {cpu: {{ .Values.cpus | quote }}, memory: {{ .Values.memory }}}
limits: {cpu: {{ .Values.cpus | quote }}, memory: {{ .Values.memory }}}
{{- end }}
