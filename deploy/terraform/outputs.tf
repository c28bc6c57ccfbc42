output "hosts" {
  description = "For redmeshctl deploy cloud-init --hosts"
  value       = join(",", [for name, ip in local.hosts : "${name}=${ip}"])
}
