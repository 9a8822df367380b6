{{- /*
finetune-operator.remedies: the remedy of the label `reason` of an alert, as a template of Prometheus.
Takes the root and the classes of contract/reasons.json to list. A reason that is not listed gives no text.
*/}}
{{- define "finetune-operator.remedies" -}}
{{- $classes := .classes -}}
{{- $branch := "if" -}}
{{- range $reason, $entry := (.root.Files.Get "files/reasons.json" | fromJson).job -}}
{{- if has $entry.class $classes -}}
{{ printf "{{ %s eq $labels.reason %q }}%s" $branch $reason $entry.remedy }}
{{- $branch = "else if" -}}
{{- end -}}
{{- end -}}
{{ "{{ end }}" }}
{{- end }}
