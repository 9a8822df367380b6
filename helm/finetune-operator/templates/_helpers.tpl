{{- define "finetune-operator.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 63 | trimSuffix "-" -}}
{{- end -}}

{{- define "finetune-operator.fullname" -}}
{{- if .Values.fullnameOverride -}}
{{- .Values.fullnameOverride | trunc 63 | trimSuffix "-" -}}
{{- else if contains (include "finetune-operator.name" .) .Release.Name -}}
{{- .Release.Name | trunc 63 | trimSuffix "-" -}}
{{- else -}}
{{- printf "%s-%s" .Release.Name (include "finetune-operator.name" .) | trunc 63 | trimSuffix "-" -}}
{{- end -}}
{{- end -}}

{{- /* Cluster-scoped names carry the namespace, so that two releases of one name do not fight over them. */ -}}
{{- define "finetune-operator.clusterName" -}}
{{- printf "%s-%s" .Release.Namespace (include "finetune-operator.fullname" .) -}}
{{- end -}}

{{- define "finetune-operator.serviceAccountName" -}}
{{- if .Values.serviceAccount.create -}}
{{- default (include "finetune-operator.fullname" .) .Values.serviceAccount.name -}}
{{- else -}}
{{- required "serviceAccount.name must be given when serviceAccount.create is false" .Values.serviceAccount.name -}}
{{- end -}}
{{- end -}}

{{- define "finetune-operator.selectorLabels" -}}
app.kubernetes.io/name: {{ include "finetune-operator.name" . }}
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/component: operator
{{- end -}}

{{- define "finetune-operator.labels" -}}
{{ include "finetune-operator.selectorLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/part-of: finetune
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | replace "+" "_" | trunc 63 | trimSuffix "-" }}
{{- end -}}

{{- /* Reference of an image; takes the image's values and the tag used when they name none. */ -}}
{{- define "finetune-operator.image" -}}
{{- $name := printf "%s/%s" .image.registry .image.repository -}}
{{- if .image.digest -}}
{{- printf "%s@%s" $name .image.digest -}}
{{- else -}}
{{- printf "%s:%s" $name (default .defaultTag .image.tag) -}}
{{- end -}}
{{- end -}}

{{- /* The operator's settings file. */ -}}
{{- define "finetune-operator.settings" -}}
{{- $trainer := .Values.trainer -}}
{{- dict
  "trainer" (dict
    "image" (include "finetune-operator.image" (dict "image" $trainer.image "defaultTag" .Chart.AppVersion))
    "imagePullPolicy" $trainer.image.pullPolicy
    "device" $trainer.device
    "telemetryPort" $trainer.telemetryPort
    "huggingFaceEndpoint" $trainer.huggingFaceEndpoint
    "resources" $trainer.resources
    "limits" $trainer.limits
    "stackProfile" $trainer.stackProfile)
  "gpuProfiles" .Values.gpuProfiles
  "allowTimeSlicing" .Values.allowTimeSlicing
  "calibration" .Values.calibration
  "watchNamespace" .Values.watchNamespace
  "workers" .Values.workers
  "client" .Values.client
  "resyncSeconds" .Values.resyncSeconds
  "progressSeconds" .Values.progressSeconds
  "metricsPort" .Values.ports.metrics
  "healthPort" .Values.ports.health
  "leaderElection" .Values.leaderElection
  "logLevel" .Values.logLevel
  | toPrettyJson -}}
{{- end -}}
