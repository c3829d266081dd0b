{{- define "portcullis.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" -}}
{{- end -}}

{{/* 50 characters leave room for -metrics and -peers in 63. */}}
{{- define "portcullis.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- $name := include "portcullis.name" . -}}
{{- if contains $name .Release.Name -}}
{{- .Release.Name | trunc 50 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name $name | trunc 50 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "portcullis.selectorLabels" -}}
app.kubernetes.io/name: {{ include "portcullis.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end -}}

{{- define "portcullis.labels" -}}
{{ include "portcullis.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" }}
{{- end -}}

{{- define "portcullis.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "portcullis.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- default "default" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "portcullis.peerService" -}}
{{- include "portcullis.fullname" . }}-peers
{{- end -}}

{{- define "portcullis.peerSecret" -}}
{{- default (printf "%s-peers" (include "portcullis.fullname" .)) .Values.peer.existingSecret -}}
{{- end -}}

{{- define "portcullis.image" -}}
{{- if .Values.image.digest -}}
{{- printf "%s@%s" .Values.image.repository .Values.image.digest -}}
{{- else -}}
{{- printf "%s:%s" .Values.image.repository (default .Chart.AppVersion .Values.image.tag) -}}
{{- end -}}
{{- end -}}

{{/* Where clients reach HTTPS. */}}
{{- define "portcullis.publicHttpsPort" -}}
{{- if .Values.service.publicHttpsPort -}}
{{- int64 .Values.service.publicHttpsPort -}}
{{- else if and (eq .Values.service.type "NodePort") .Values.service.httpsNodePort -}}
{{- int64 .Values.service.httpsNodePort -}}
{{- else -}}
{{- int64 .Values.service.httpsPort -}}
{{- end -}}
{{- end -}}

{{/* What a replica reads, wherever its Roles stand. Secrets may have Roles of their own. */}}
{{- define "portcullis.readRules" -}}
- apiGroups: [portcullis.dev]
  resources: [gatewayroutes, gatewaybackends, gatewaypolicies]
  verbs: [get, list, watch]
- apiGroups: [portcullis.dev]
  resources: [gatewayroutes/status, gatewaybackends/status, gatewaypolicies/status]
  verbs: [patch]
- apiGroups: [""]
  resources: [configmaps, {{ if eq .Values.rbac.secrets "cluster" }}secrets, {{ end }}services]
  verbs: [get, list, watch]
- apiGroups: [discovery.k8s.io]
  resources: [endpointslices]
  verbs: [get, list, watch]
- apiGroups: [gateway.networking.k8s.io]
  resources: [referencegrants]
  verbs: [get, list, watch]
- apiGroups: [events.k8s.io]
  resources: [events]
  verbs: [create, patch]
{{- end -}}
