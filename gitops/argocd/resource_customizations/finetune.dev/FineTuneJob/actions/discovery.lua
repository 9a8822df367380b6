local ended, failed = false, false
for _, entry in ipairs((obj.status or {}).conditions or {}) do
  if entry.type == "Succeeded" and entry.status ~= "Unknown" then
    ended = true
    failed = entry.status == "False"
  end
end
local suspended = obj.spec.suspend == true
return {
  ["suspend"] = {["disabled"] = ended or suspended, ["iconClass"] = "fa fa-fw fa-pause"},
  ["resume"] = {["disabled"] = ended or not suspended, ["iconClass"] = "fa fa-fw fa-play"},
  ["retry"] = {["disabled"] = not failed, ["iconClass"] = "fa fa-fw fa-redo"},
}
