variable "compartment_id" {
  description = "OCID of the compartment that everything is made in"
  type        = string
}

variable "availability_domain" {
  description = "Availability domain of the hosts"
  type        = string
}

variable "image_id" {
  description = "OCID of an image of Debian 12 or Ubuntu 24.04 with cloud-init"
  type        = string
}

variable "ssh_authorized_keys" {
  description = "Public keys that may log in"
  type        = string
  default     = ""
}

variable "host_count" {
  description = "Hosts of the mesh"
  type        = number
  default     = 10

  validation {
    condition     = var.host_count >= 1 && var.host_count <= 200
    error_message = "The subnet has room for 200 hosts."
  }
}

variable "shape" {
  description = "Shape of a host"
  type        = string
  default     = "BM.Standard2.52"
}

variable "instances_per_host" {
  description = "redis-servers of a host, from port 6379 on"
  type        = number
  default     = 100
}

variable "subnet_cidr" {
  description = "Network of the hosts; host-1 has the eleventh address in it"
  type        = string
  default     = "10.0.0.0/24"
}

variable "client_cidrs" {
  description = "Networks of the cluster's clients"
  type        = list(string)
  default     = []
}

variable "operator_cidrs" {
  description = "Networks that redmeshctl and ssh come from"
  type        = list(string)
  default     = []
}

variable "scraper_cidrs" {
  description = "Networks that Prometheus scrapes from"
  type        = list(string)
  default     = []
}

variable "user_data_dir" {
  description = "Directory with host-N.yaml, from `redmeshctl deploy cloud-init`"
  type        = string
}
