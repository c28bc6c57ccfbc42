# Ten bare-metal hosts of BM.Standard2.52, or as many as host_count says, in a subnet of
# their own. Addresses are fixed, since certificates name them: host-N has the address 10+N.
# docs/operations.md has the command that renders their user data.

locals {
  hosts = { for i in range(1, var.host_count + 1) : "host-${i}" => cidrhost(var.subnet_cidr, 10 + i) }

  mesh_port = 7379
  join_port = 7381
  http_port = 7380
  data_min  = 6379
  data_max  = 6379 + var.instances_per_host - 1
  bus_min   = local.data_min + 10000
  bus_max   = local.data_max + 10000

  # Who may reach which ports, and nothing else may: [protocol, network, first, last].
  # 17 is UDP, 6 is TCP.
  openings = concat(
    [
      ["17", var.subnet_cidr, local.mesh_port, local.mesh_port],
      ["17", var.subnet_cidr, local.join_port, local.join_port],
      ["6", var.subnet_cidr, local.data_min, local.data_max],
      ["6", var.subnet_cidr, local.bus_min, local.bus_max],
      ["6", var.subnet_cidr, local.http_port, local.http_port],
    ],
    [for cidr in var.client_cidrs : ["6", cidr, local.data_min, local.data_max]],
    [for cidr in var.scraper_cidrs : ["6", cidr, local.http_port, local.http_port]],
    [for cidr in var.operator_cidrs : ["17", cidr, local.mesh_port, local.mesh_port]],
    [for cidr in var.operator_cidrs : ["6", cidr, 22, 22]],
  )
}

resource "oci_core_vcn" "redmesh" {
  compartment_id = var.compartment_id
  cidr_blocks    = [var.subnet_cidr]
  display_name   = "redmesh"
}

resource "oci_core_internet_gateway" "redmesh" {
  compartment_id = var.compartment_id
  vcn_id         = oci_core_vcn.redmesh.id
  display_name   = "redmesh"
}

resource "oci_core_route_table" "redmesh" {
  compartment_id = var.compartment_id
  vcn_id         = oci_core_vcn.redmesh.id
  display_name   = "redmesh"

  route_rules {
    destination       = "0.0.0.0/0"
    network_entity_id = oci_core_internet_gateway.redmesh.id
  }
}

resource "oci_core_security_list" "redmesh" {
  compartment_id = var.compartment_id
  vcn_id         = oci_core_vcn.redmesh.id
  display_name   = "redmesh"

  egress_security_rules {
    protocol    = "all"
    destination = "0.0.0.0/0"
  }

  dynamic "ingress_security_rules" {
    for_each = local.openings
    content {
      protocol = ingress_security_rules.value[0]
      source   = ingress_security_rules.value[1]

      dynamic "tcp_options" {
        for_each = ingress_security_rules.value[0] == "6" ? [1] : []
        content {
          min = ingress_security_rules.value[2]
          max = ingress_security_rules.value[3]
        }
      }

      dynamic "udp_options" {
        for_each = ingress_security_rules.value[0] == "17" ? [1] : []
        content {
          min = ingress_security_rules.value[2]
          max = ingress_security_rules.value[3]
        }
      }
    }
  }
}

resource "oci_core_subnet" "redmesh" {
  compartment_id    = var.compartment_id
  vcn_id            = oci_core_vcn.redmesh.id
  cidr_block        = var.subnet_cidr
  display_name      = "redmesh"
  route_table_id    = oci_core_route_table.redmesh.id
  security_list_ids = [oci_core_security_list.redmesh.id]
}

resource "oci_core_instance" "host" {
  for_each            = local.hosts
  compartment_id      = var.compartment_id
  availability_domain = var.availability_domain
  shape               = var.shape
  display_name        = each.key

  create_vnic_details {
    subnet_id  = oci_core_subnet.redmesh.id
    private_ip = each.value
  }

  source_details {
    source_type = "image"
    source_id   = var.image_id
  }

  metadata = {
    ssh_authorized_keys = var.ssh_authorized_keys
    # It holds the host's private key, and so does Terraform's state: keep both to yourself.
    user_data = filebase64("${var.user_data_dir}/${each.key}.yaml")
  }
}
